"""Triton's own clients, over HTTP and over gRPC, with typed and with binary tensors."""

import json
import sys

import numpy as np
import tritonclient.grpc
import tritonclient.http

KINDS = {"FP64": np.float64, "INT64": np.int64, "BOOL": np.bool_, "BYTES": np.object_}

given = json.load(sys.stdin)
answers = {}


def question(module, metadata, **how):
    inputs = []
    for item in metadata["inputs"]:
        value = given["row"][item["name"]]
        tensor = module.InferInput(item["name"], [1], item["datatype"])
        tensor.set_data_from_numpy(np.array([value], dtype=KINDS[item["datatype"]]), **how)
        inputs.append(tensor)
    return inputs


def told(answer):
    prediction = answer.as_numpy("predictions")[0]
    prediction = prediction.decode() if isinstance(prediction, bytes) else prediction.item()
    return [prediction, float(answer.as_numpy("probabilities")[0])]


http = tritonclient.http.InferenceServerClient(given["url"].removeprefix("http://"))
assert http.is_server_live()
assert http.is_server_ready()
assert http.is_model_ready(given["name"])
metadata = http.get_model_metadata(given["name"])
for binary in (True, False):
    outputs = [
        tritonclient.http.InferRequestedOutput(name, binary_data=binary) for name in ("predictions", "probabilities")
    ]
    asked = question(tritonclient.http, metadata, binary_data=binary)
    answers[f"triton http {'binary' if binary else 'json'}"] = told(http.infer(given["name"], asked, outputs=outputs))
http.close()

grpc = tritonclient.grpc.InferenceServerClient(given["grpc"])
assert grpc.is_server_live()
assert grpc.is_server_ready()
assert grpc.is_model_ready(given["name"])
metadata = grpc.get_model_metadata(given["name"], as_json=True)
answers["triton grpc"] = told(grpc.infer(given["name"], question(tritonclient.grpc, metadata)))
grpc.close()
sys.stdout.write(json.dumps(answers))
