"""All scenarios; importing this enters them into `chaos.scenario.ALL`."""

from chaos.scenarios import changes, crowds, deaths, links, mixed, origins, storage

__all__ = ["changes", "crowds", "deaths", "links", "mixed", "origins", "storage"]
