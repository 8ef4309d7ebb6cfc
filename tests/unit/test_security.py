"""The promises of docs/cluster.md on security: each has a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROMISES = {
    "`cluster.yaml` opens no port": ["unit/test_cluster_file.py::test_nothing_is_open_but_ssh"],
    "A cluster that requires": [
        "unit/jobs/test_jobs_client.py::test_a_missing_token_is_told",
        "unit/jobs/test_jobs_client.py::test_a_wrong_token_is_told",
    ],
    "All processes of rayddl's own": ["stages/test_local_ray.py::test_every_socket_is_on_loopback"],
    "Local Ray requires": ["stages/test_local_ray.py::test_its_token_is_asked_for"],
    "Only you can read": ["stages/test_local_ray.py::test_two_after_each_other_in_one_process"],
    "If you have set": ["stages/test_local_ray.py::test_the_users_token_stays"],
    "YAML is read": [
        "unit/pipeline/test_pipeline_document.py::test_message",
        "fuzz/test_members.py::test_text_of_definitions",
    ],
    "Files of tensors": ["unit/base/test_base_tensorfiles.py::test_code_is_refused_and_not_run"],
    "A `.pt` file that calls": [
        "unit/base/test_base_tensorfiles.py::test_calls_that_make_much_of_little_are_refused"
    ],
    "CIFAR's own batches": ["unit/data/test_data_sources.py::test_damaged_cifar_files_are_refused"],
    "Names in manifests": [
        "unit/pipeline/test_pipeline_artifacts.py::test_files_outside_the_folder",
        "unit/base/test_base_storage.py::test_a_name_cannot_leave_its_folder",
    ],
    "Links that lead out": [
        "unit/data/test_data_odd_sources.py::test_a_link_out_of_the_root_is_refused",
        "unit/data/test_data_odd_sources.py::test_paths_in_a_table_do_not_leave_by_a_link",
    ],
    "An export holds nothing": ["unit/pipeline/test_export.py::test_nothing_is_read_through_links"],
    "Devices and pipes": [
        "unit/base/test_base_storage.py::test_devices_and_pipes_are_no_files",
        "unit/trajectories/test_trajectories_replay.py::test_pipes_are_no_buffers",
    ],
    "Images are opened only": [
        "unit/data/test_data_decode.py::test_postscript_is_no_image",
        "unit/data/test_data_decode.py::test_other_formats_of_pil_are_not_opened",
    ],
    "JSON documents are read": [
        "unit/base/test_base_documents.py::test_what_is_not_read",
        "unit/base/test_base_documents.py::test_the_key_is_named",
    ],
    "An observer's network": [
        "unit/training/test_training_observer.py::test_a_network_is_compared_with_the_tensors_before_it_is_built"
    ],
    "A file that `extends` names": [
        "unit/pipeline/test_pipeline_reading.py::test_other_files_are_not_quoted"
    ],
    "Control characters": ["unit/base/test_base_escapes.py::test_visible"],
    "`plan`, `evaluate`, `export` and `compare`": [
        "unit/pipeline/test_trust.py::test_plan_asks_first",
        "unit/pipeline/test_trust.py::test_a_set_cannot_name_a_host",
        "unit/base/test_base_hosts.py::test_others_are_refused",
    ],
    "`show` and `list`": ["unit/pipeline/test_trust.py::test_looking_at_a_folder_opens_nothing_else"],
    "The Hugging Face Hub": ["unit/pipeline/test_hub.py::test_only_a_named_place_is_contacted"],
    "A set cannot start": ["unit/pipeline/test_trust.py::test_a_set_cannot_ask_for_a_download"],
    "A variable in a definition": ["unit/pipeline/test_pipeline_reading.py::test_variables_stay_here"],
    "`RAYDDL_MAX_PIXELS`": [
        "unit/data/test_data_decode.py::test_images_of_many_pixels_are_reported",
        "unit/data/test_data_decode.py::test_a_small_file_of_many_pixels_is_reported",
    ],
    "`RAYDDL_MAX_JPEG_SCANS`": ["unit/data/test_data_decode.py::test_a_jpeg_of_many_scans_is_reported"],
    "`RAYDDL_MAX_CLASSES`": ["unit/base/test_base_documents.py::test_the_classes_of_a_set_are_limited"],
    "`RAYDDL_MAX_ROWS`": [
        "unit/data/test_data_parquet_refused.py::test_more_rows_than_the_limit",
        "unit/data/test_data_bounds.py::test_bytes_of_labels_have_a_limit",
    ],
    "`RAYDDL_MAX_CELL_BYTES`": [
        "unit/data/test_data_bounds.py::test_a_large_image_of_a_row_is_an_error_of_that_row"
    ],
    "`RAYDDL_MAX_DOCUMENT_BYTES`": ["unit/base/test_base_documents.py::test_the_limit_of_bytes_is_a_setting"],
    "Row groups": [
        "unit/data/test_data_bounds.py::test_large_cells_of_one_row_group_are_decoded_a_few_at_a_time"
    ],
    "Tensors in a `.pt`": [
        "unit/base/test_base_tensorfiles.py::test_tensors_that_grow_are_refused",
        "unit/base/test_base_tensorfiles.py::test_values_shared_by_many_tensors_are_refused",
    ],
    "Keys in a URI": [
        "unit/base/test_base_scrub.py::test_secrets_never_stay",
        "unit/base/test_base_storage.py::test_documents_hold_no_credentials",
        "unit/base/test_base_errors.py::test_no_message_quotes_a_key",
        "unit/pipeline/test_pipeline_display.py::test_no_display_shows_a_key",
    ],
    "`submit` refuses": ["unit/jobs/test_shipping.py::test_credentials_are_not_shipped"],
}
"""The beginning of each promise, and its tests below tests/."""


def promises() -> list[str]:
    """The items of the lists in the section."""
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    section = text.partition("## Security\n")[2].partition("\n## ")[0]
    return [" ".join(item.split()) for item in re.findall(r"^- (.*(?:\n  .*)*)", section, re.MULTILINE)]


def test_each_promise_has_tests() -> None:
    """One entry for each, and none for what is no longer said."""
    found = promises()
    assert len(found) > 20
    for promise in found:
        assert len([start for start in PROMISES if promise.startswith(start)]) == 1, promise
    assert [start for start in PROMISES if not any(each.startswith(start) for each in found)] == []


@pytest.mark.parametrize("test", sorted({test for tests in PROMISES.values() for test in tests}))
def test_the_tests_exist(test: str) -> None:
    """By their names in their files."""
    file, _, name = test.partition("::")
    assert re.search(rf"^ *def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE)
