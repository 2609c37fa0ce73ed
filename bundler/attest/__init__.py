"""What a bundle says of where it comes from and on which terms it may be passed on."""
