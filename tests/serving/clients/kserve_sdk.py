"""KServe's own inference client: the first and the second protocol over REST, and gRPC."""

import asyncio
import json
import sys

from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

given = json.load(sys.stdin)
KINDS = {"float": "FP64", "int": "INT64", "bool": "BOOL"}


def question():
    inputs = []
    for name, kind in given["inputs"].items():
        inputs.append(InferInput(name, [1], KINDS.get(kind, "BYTES"), data=[given["row"][name]]))
    return InferRequest(model_name=given["name"], infer_inputs=inputs)


def told(answer):
    outputs = {output.name: output.as_numpy() for output in answer.outputs}
    prediction = outputs["predictions"][0]
    prediction = prediction.decode() if isinstance(prediction, bytes) else prediction
    prediction = prediction if isinstance(prediction, str) else prediction.item()
    return [prediction, float(outputs["probabilities"][0])]


async def ask():
    answers = {}
    one = InferenceRESTClient(RESTConfig(protocol="v1"))
    assert await one.is_model_ready(given["url"], given["name"])
    answer = await one.infer(given["url"], {"instances": [given["row"]]}, model_name=given["name"])
    answers["kserve v1"] = [answer["predictions"][0], answer["probabilities"][0]]
    two = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await two.is_server_live(given["url"])
    assert await two.is_server_ready(given["url"])
    assert await two.is_model_ready(given["url"], given["name"])
    answers["kserve v2"] = told(await two.infer(given["url"], question(), model_name=given["name"]))
    channel = InferenceGRPCClient(url=given["grpc"])
    assert await channel.is_server_live()
    assert await channel.is_model_ready(given["name"])
    answers["kserve grpc"] = told(await channel.infer(question()))
    await channel.close()
    return answers


sys.stdout.write(json.dumps(asyncio.run(ask())))
