"""What pre-trained weights are worth: data and probes."""
