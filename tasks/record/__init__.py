"""The record, in MLflow: written by stages and by the flow, and never read to decide what to run.

Each module imports from those before it: database, unsent, mlflow_client, candidates, stage_run, registry, compare,
pipeline_run. served runs apart.
"""
