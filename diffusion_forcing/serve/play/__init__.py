"""`diffusion-forcing play`: a local page on which the shipped models can be driven, asked, bent and blindfolded."""
