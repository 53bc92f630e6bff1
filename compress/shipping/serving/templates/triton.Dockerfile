# TRITON: NVIDIA's image of Triton with the $backends, and the tag that you run.
ARG TRITON
FROM $${TRITON}
$install# Digests; where numpy and the runtime are there too, `python3 verify.py` runs the golden outputs as well.
COPY . /srv
RUN python3 -B /srv/verify.py --digests
ENTRYPOINT ["/srv/serve.sh"]
