"""The stages of a training in order: data, then drafter."""
