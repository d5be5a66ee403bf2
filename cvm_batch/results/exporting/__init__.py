"""Results in the formats of others: QuPath's GeoJSON, CSV, and a run's summary as JSON."""
