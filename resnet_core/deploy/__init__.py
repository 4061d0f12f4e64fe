"""Models on their way into use."""

from resnet_core.deploy.export import EXPORTERS, Export, ExportError, export

__all__ = ["EXPORTERS", "Export", "ExportError", "export"]
