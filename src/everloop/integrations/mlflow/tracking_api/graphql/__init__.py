"""The GraphQL address of MLflow's page: a schema, its limits, and fields that ask the protocol's own routes.

It needs graphql-core, which is imported with the first question and not with the server.
"""

from everloop.integrations.mlflow.tracking_api.graphql.query_execution import LARGEST_BODY, MOST_DEPTH, answer_query

__all__ = ["LARGEST_BODY", "MOST_DEPTH", "answer_query"]
