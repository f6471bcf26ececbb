"""Time series as windows for forecasting: from tables, CSV and Parquet files, and GluonTS folders."""

from diffusion_forcing.errors import UserError

try:
    import gluonts  # noqa: F401
    import pandas  # noqa: F401
except ImportError as error:
    raise UserError(f"time series need {error.name}: pip install 'diffusion-forcing[forecasting]'") from None
