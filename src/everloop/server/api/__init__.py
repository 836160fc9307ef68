"""The routes below /api/v1, a module for each concern; each exports `routes`."""
