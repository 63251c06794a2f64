"""One tree, three tables: complete, and without an entry too many."""

from __future__ import annotations

from broker import errors, ports


def tree(root: type[errors.BrokerError]) -> set[type[errors.BrokerError]]:
    found = {root}
    for child in root.__subclasses__():
        found |= tree(child)
    return found


OURS = {cls for cls in tree(errors.BrokerError) if cls.__module__ == "broker.errors"}


def test_every_code_stands_in_every_table() -> None:
    codes = {cls.code for cls in OURS}
    assert codes == errors.HTTP_STATUS.keys() == errors.EXIT_CODE.keys() == errors.ERROR_CLASS.keys()


def test_a_code_is_one_class() -> None:
    for code, cls in errors.ERROR_CLASS.items():
        assert cls.code == code
    assert errors.ERROR_CLASS["internal"] is errors.InternalError
    distinct = [cls for cls in OURS if cls is not errors.BrokerError]
    assert len({cls.code for cls in distinct}) == len(distinct)


def test_statuses_map_to_exit_codes_as_the_contract_says() -> None:
    expected = {409: 2, 413: 2, 415: 2, 422: 2, 429: 8, 404: 5}
    for code, status in errors.HTTP_STATUS.items():
        if status in expected:
            assert errors.EXIT_CODE[code] == expected[status], code


def test_an_unknown_code_falls_back_to_its_status() -> None:
    assert errors.find_error_class("brand_new", 403) is errors.Denied
    assert errors.find_error_class("brand_new", 503) is errors.Unavailable
    assert errors.find_error_class("brand_new", 418) is errors.InternalError
    assert errors.find_error_class("replayed_proof", 401) is errors.ReplayedProof


def test_what_never_leaves_the_services_has_a_code_that_could() -> None:
    assert ports.StaleDecision.code in errors.HTTP_STATUS
