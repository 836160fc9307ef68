"""Request protocols of an endpoint: native, Open Inference v2 (REST and gRPC), KServe v1, MLflow invocations."""
