"""What a stage needs of devices that are not here."""
