"""What few runs need, imported inside the functions that need it; read it when you use it."""
