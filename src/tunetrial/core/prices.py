"""What the user says of prices: of the machine, of the whole study, and of costs beside the trials."""

from pydantic import Field

from tunetrial.core.records import Record, added


class Hardware(Record):
    """What the user says of the machine; `usd_per_hour` prices the trials, and no price is assumed without it."""

    gpu: str | None = None
    usd_per_hour: float | None = Field(default=None, ge=0)


class Budget(Record):
    """What a study may take in all: US dollars at the hardware's price, hours of the machine's time, or both.

    The hours are of wall time while the study runs, on whatever the machine has: a GPU, or none.
    """

    usd: float | None = Field(default=None, gt=0)
    gpu_hours: float | None = Field(default=None, gt=0)


class Costs(Record):
    """What the user says of costs beside the trials': hours of engineers for the whole study, and dollars for anything
    `other`, once; and of what is then used, for how many months how many variants are kept, how often a month each is
    trained again, how many requests are answered a month in all, in how many hours of it.

    Serving is paid by the request or by memory and hour, where one has a price, else by the machine's hour.
    """

    engineer_hours: float | None = Field(default=None, ge=0)
    usd_per_engineer_hour: float | None = Field(default=None, ge=0)
    months: float | None = Field(default=None, ge=0)
    variants: int = Field(default=1, ge=1)
    usd_per_gb_month: float | None = Field(default=None, ge=0)
    requests_per_month: float | None = Field(default=None, ge=0)
    usd_per_request: float | None = Field(default=None, ge=0)
    usd_per_gb_hour: float | None = added()
    hours_per_month: float | None = added()
    retrainings_per_month: float | None = added()
    other_usd: float | None = added()
