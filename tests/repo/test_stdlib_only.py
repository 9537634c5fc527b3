"""Core and storage need nothing but the standard library and what lies below them.

A short test of our own, because import-linter can forbid names but has no list of what is allowed.
"""

import sys

ALLOWED = {
    "daskqueue_core": {"daskqueue_core"},
    "daskqueue_storage": {"daskqueue_storage", "daskqueue_core"},
}


def outsiders(source) -> list[str]:
    """What a module imports that it may not."""
    allowed = sys.stdlib_module_names | ALLOWED[source.package]
    found = []
    for target in source.imports:
        top = target.module.split(".")[0]
        in_test_kit = source.name.startswith(f"{source.package}.testing")
        # hypothesis is an extra: a test kit may use it, but must import without it.
        if top in allowed or (top == "hypothesis" and in_test_kit and not target.at_import):
            continue
        found.append(f"{source.name} imports {target.module} (line {target.line})")
    return found


def test_core_and_storage_import_the_standard_library_only(sources) -> None:
    """No module of core or storage imports a third-party package; hypothesis only inside functions of a test kit."""
    checked = [source for source in sources if source.package in ALLOWED]
    assert checked
    assert [line for source in checked for line in outsiders(source)] == []
