"""Object storage and web servers, as far as slides and results share them."""
