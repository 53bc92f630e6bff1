#!/bin/sh
# Start Triton on this folder. It can be reached from this machine alone, unless HOST names another address.
here="$$(cd "$$(dirname "$$0")" && pwd)"
address="$${HOST:-127.0.0.1}"
export ORT_DISABLE_TELEMETRY="$${ORT_DISABLE_TELEMETRY:-1}"  # ONNX Runtime reports to its makers otherwise
exec tritonserver --model-repository="$$here/models" --model-control-mode=none --disable-auto-complete-config \
  --http-address="$$address" --grpc-address="$$address" --metrics-address="$$address" "$$@"
