"""Time series as windows for forecasting: from tables, CSV and Parquet files, and GluonTS folders."""
