"""MLflow's own scoring client."""

import json
import sys
import urllib.request

import pandas as pd
from mlflow.pyfunc.scoring_server.client import ScoringServerClient

given = json.load(sys.stdin)
host, _, port = given["url"].removeprefix("http://").rpartition(":")
client = ScoringServerClient(host, int(port))
client.wait_server_ready(timeout=30)
answer = client.invoke(pd.DataFrame([given["row"]]))
predictions = answer.get_predictions()
value = predictions.iloc[0, 0]
probability = json.loads(answer.to_json())["probabilities"][0]
assert urllib.request.urlopen(given["url"] + "/version", timeout=10).read()
sys.stdout.write(json.dumps({"mlflow scoring": [value if isinstance(value, str) else value.item(), probability]}))
