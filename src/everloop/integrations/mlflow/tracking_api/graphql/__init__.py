"""GraphQL API of MLflow's web page: the schema, limits of queries, and their execution by the REST routes.

It needs graphql-core, which is imported with the first query and not with the server.
"""

from everloop.integrations.mlflow.tracking_api.graphql.query_execution import LARGEST_BODY, MOST_DEPTH, answer_query

__all__ = ["LARGEST_BODY", "MOST_DEPTH", "answer_query"]
