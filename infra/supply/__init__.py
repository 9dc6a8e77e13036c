"""What the images and the service are made of (SBOMs), and what is known against it: `make sbom`, `make audit`."""
