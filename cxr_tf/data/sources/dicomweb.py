"""Retrieve images from a PACS, and store results in it, by DICOMweb.

    with downloaded(("dicomweb://localhost:8042/dicom-web/studies/1.2.3",)) as (images, urls): ...
    store("dicomweb://localhost:8042/dicom-web", [Path("report.dcm")])

The services are WADO-RS and STOW-RS. dicomweb:// is http, dicomwebs:// is https. The user name and
password come from the URL or ~/.netrc. Requires dicomweb-client (requirements-dicom.txt).
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cxr_tf.data.sources.dicom import silent
from cxr_tf.errors import UserError, first_line

SCHEMES = {"dicomweb": "http", "dicomwebs": "https"}

# Modalities of series that contain radiographs: computed, digital and scanned film.
MODALITIES = ("CR", "DX", "RG")

_UID = r"[0-9.]{1,64}"
_RESOURCE = re.compile(
    rf"(?P<root>.*?)/studies/(?P<study>{_UID})"
    rf"(/series/(?P<series>{_UID})(/instances/(?P<instance>{_UID}))?)?/?"
)


def is_dicomweb(text: str) -> bool:
    """Return whether a value of --images or --output is a DICOMweb address."""
    return text.partition("://")[0] in SCHEMES


@contextlib.contextmanager
def downloaded(wanted: Sequence[str]) -> Iterator[tuple[tuple[str, ...], dict[str, str]]]:
    """Yield the list with each DICOMweb address replaced by a folder of its images.

    Also yields {path of a downloaded file: its address}. The folder is temporary. Raises UserError
    if a server does not respond, has no such study, or has no radiograph in the study.
    """
    if not any(map(is_dicomweb, wanted)):
        yield tuple(wanted), {}
        return
    with tempfile.TemporaryDirectory(prefix="cxr_tf-dicomweb-") as folder:
        places: list[str] = []
        urls: dict[str, str] = {}
        for number, item in enumerate(wanted):
            if is_dicomweb(item):
                place = Path(folder) / str(number)
                urls |= _retrieve(item, place)
                places.append(str(place))
            else:
                places.append(item)
        yield tuple(places), urls


def check_target(url: str) -> None:
    """Raise UserError if results cannot be stored at a DICOMweb address."""
    if "/studies" in url:
        raise UserError(f"--output {url}: give the root of the service, without /studies")
    with _errors(url):
        _client(url).search_for_studies(limit=1)


def store(url: str, files: Sequence[Path]) -> None:
    """Send DICOM files to the service at a DICOMweb address; raise UserError if it rejects one."""
    import pydicom

    client = _client(url)
    for file in files:
        with _errors(url), silent():
            answer = client.store_instances([pydicom.dcmread(file)])
        if failed := answer.get("FailedSOPSequence"):
            reason = failed[0].get("FailureReason", "unknown")
            raise UserError(f"{shown(url)} rejected {file.name} (failure reason {reason})")


def _retrieve(url: str, folder: Path) -> dict[str, str]:
    """Download the images at an address into a new folder; return {path: address}."""
    found = _RESOURCE.fullmatch(url)
    if not found:
        raise UserError(
            f"--images {url}: give dicomweb://host:port/path/studies/UID, and optionally "
            "/series/UID and /instances/UID"
        )
    folder.mkdir()
    urls: dict[str, str] = {}
    with _errors(url), silent():
        client = _client(found["root"])
        for series, instance in list(_instances(client, found)):
            path = folder / f"{len(urls):05d}.dcm"
            client.retrieve_instance(
                found["study"], series, instance, media_types=(("application/dicom", "*"),)
            ).save_as(path, enforce_file_format=True)
            urls[str(path)] = (
                f"{shown(found['root'])}/studies/{found['study']}/series/{series}"
                f"/instances/{instance}"
            )
    if not urls:
        searched = (
            "series, or no image in it"
            if found["series"]
            else f"study, or no radiograph in it (modality {', '.join(MODALITIES)})"
        )
        raise UserError(f"{shown(url)}: no such {searched}")
    return urls


def _instances(client: Any, found: re.Match[str]) -> Iterator[tuple[str, str]]:
    """Yield the UIDs of the series and the instance of each image."""
    study = found["study"]
    if found["instance"]:
        yield found["series"], found["instance"]
        return
    if found["series"]:
        wanted = [found["series"]]
    else:
        wanted = [
            _value(series, "0020000E")
            for series in client.search_for_series(study, get_remaining=True)
            if _value(series, "00080060") in MODALITIES
        ]
    for series in wanted:
        for instance in client.search_for_instances(study, series, get_remaining=True):
            yield series, _value(instance, "00080018")


def _value(dataset: dict[str, Any], tag: str) -> str:
    """Return the first value of an element in DICOM JSON."""
    return str(dataset.get(tag, {}).get("Value", [""])[0])


def _client(url: str) -> Any:
    try:
        from dicomweb_client import DICOMwebClient
    except ImportError:
        raise UserError(
            f"{url} needs dicomweb-client: pip install -r requirements-dicom.txt"
        ) from None
    import requests

    parts = urlsplit(url)
    session = requests.Session()
    if parts.username:
        session.auth = (parts.username, parts.password or "")
    address = parts._replace(scheme=SCHEMES[parts.scheme], netloc=parts.netloc.rpartition("@")[2])
    client = DICOMwebClient(address.geturl().rstrip("/"), session=session)
    # Two more attempts within two seconds; the client's default of five takes half a minute.
    client.set_http_retry_params(max_attempts=3, wait_exponential_multiplier=250)
    return client


def shown(url: str) -> str:
    """Return an address without user name and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@contextlib.contextmanager
def _errors(url: str) -> Iterator[None]:
    """Convert connection errors to UserError."""
    import requests

    address = shown(url)
    try:
        yield
    except requests.exceptions.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise UserError(
                f"{address} returned {status}: give user name and password in the URL or ~/.netrc"
            ) from None
        if status == 404:
            raise UserError(
                f"{address} returned 404: no such service, study, series or instance"
            ) from None
        raise UserError(f"{address} returned {status}: {first_line(error)}") from None
    except requests.exceptions.SSLError as error:
        raise UserError(f"{address}: no secure connection: {first_line(error)}") from None
    except requests.exceptions.ConnectionError:
        raise UserError(f"no DICOMweb service responds at {address}: is it running?") from None
    except requests.exceptions.RequestException as error:
        raise UserError(f"{address}: {first_line(error)}") from None
