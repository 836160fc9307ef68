"""Vertex AI's own client, whose endpoint is our server: it answers at the path that its environment names."""

import json
import sys

from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.cloud.aiplatform_v1 import PredictionServiceClient

given = json.load(sys.stdin)
client = PredictionServiceClient(
    credentials=AnonymousCredentials(), transport="rest", client_options=ClientOptions(api_endpoint=given["url"])
)
answer = client.predict(endpoint=given["vertex"], instances=[given["row"]], timeout=20)
(prediction,) = answer.predictions
sys.stdout.write(json.dumps({"vertex": [prediction, None]}))
