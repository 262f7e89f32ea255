"""``sciml verify``: which physical laws a model obeys."""

from typing import Any

from sciml.evaluate.verify.dynamics import Dynamics
from sciml.evaluate.verify.run import certify, write
from sciml.evaluate.verify.systems import embedded_sources
from sciml.ingest.ingest import open_data
from sciml.train.sources import check_known, evaluation_sources
from sciml.verbs.package import open_package, output_folder, package_or_checkpoint


def verify(config: Any) -> int:
    """``sciml verify``: the laws that a package or checkpoint obeys; writes ``certificate.json`` and a page.

    Returns 1 where a law that it should obey fails.
    """
    package, _ = open_package(config.package, config.device, package_or_checkpoint)
    output = output_folder(config.output, package, "verify", "certificate")
    sources = embedded_sources(package)
    if config.store:
        known = package.config["datasets_of_domain"]
        sources = evaluation_sources(
            config.store, lambda path: open_data(path, cache_dir=output / "data"), package.datasets, known
        )
        check_known(sources, package.config["model"]["context"], package.config.get("elements", ()))
    certificate = certify(package, sources, config.samples, Dynamics(**config.nve.model_dump()), config.seed)
    page = write(certificate, output)
    print(certificate.table)
    print(f"certificate  {output / 'certificate.json'}\npage         {page}")
    return 1 if certificate.failed else 0
