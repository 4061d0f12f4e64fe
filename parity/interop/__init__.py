"""Our model beside the libraries that people come from; `make interop` installs them."""
