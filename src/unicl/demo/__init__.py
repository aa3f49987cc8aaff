"""A demonstration on real pictures: what each system learns from the same labels and captions."""
