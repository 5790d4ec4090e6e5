"""Views for JupyterLab, each with a picture for where nobody can click."""
