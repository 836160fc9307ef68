"""The noise floor: how far windows are from the reference if nothing has changed, learned from the reference itself."""
