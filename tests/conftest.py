"""splitpoint comes before anything a test imports: it turns off the telemetry of what it builds on."""

import splitpoint  # noqa: F401
