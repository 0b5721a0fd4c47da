"""Each stage maps artefacts to artefacts with Ray. Stages never import each other."""
