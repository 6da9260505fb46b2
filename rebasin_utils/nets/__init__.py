"""Networks and data: models, images, devices, masks. Nothing here knows of a study."""
