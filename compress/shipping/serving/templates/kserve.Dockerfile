# The base image may be any with Python 3.10 to 3.13; constraints.txt was tested with 3.11.
FROM python:3.11-slim
WORKDIR /srv
COPY requirements.txt constraints.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
RUN chmod -R a+rX .
# Digests, and the golden outputs on the machine that builds the image.
RUN python -B verify.py
USER 10001
EXPOSE 8080
ENTRYPOINT ["python", "-B", "-m", "server"]
