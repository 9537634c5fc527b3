"""Routes, and who serves them."""

from daskqueue_core import routes as module
from daskqueue_core.batch import Kind
from daskqueue_core.routes import Route, Routes


def test_routes_are_interned() -> None:
    """The same kind and tags, the same number, whatever their order."""
    routes = Routes()
    assert [routes.number(Kind.ITEM), routes.number(Kind.CALL), routes.number(Kind.ITEM, ())] == [0, 1, 0]
    assert (
        routes.number(Kind.CALL, ("b", "a")) == routes.number(1, ["a", "b", "a"]) == routes.number(1, ("a", "b")) == 2
    )
    assert (len(routes), routes[2]) == (3, Route(1, ("a", "b")))


def test_who_serves_what() -> None:
    """The kind is one of his, and all tags are."""
    routes = Routes()
    plain, tagged, both = (routes.number(Kind.CALL, tags) for tags in ((), ("a",), ("a", "b")))
    item = routes.number(Kind.ITEM, ("a",))
    assert routes.served((Kind.CALL,), ()) == (plain,)
    assert routes.served([Kind.CALL], ["a", "x"]) == (plain, tagged)
    assert routes.served({Kind.CALL}, {"b", "a"}) == (plain, tagged, both)
    assert routes.served((Kind.ITEM, Kind.CALL), ("a",)) == (plain, tagged, item)
    assert routes.served((), ("a",)) == ()


def test_a_new_route_is_served_at_once() -> None:
    """By whoever asked before."""
    routes = Routes()
    assert routes.served((0, 1), ("a",)) == ()
    routes.number(1, ("a",))
    assert routes.served((0, 1), ("a",)) == (0,)


def test_routes_of_kinds() -> None:
    """Whatever their tags."""
    routes = Routes()
    for kind, tags in ((1, ()), (0, ()), (1, ("a",))):
        routes.number(kind, tags)
    assert (routes.of_kinds((1,)), routes.of_kinds((0, 1)), routes.of_kinds(())) == ([0, 2], [0, 1, 2], [])


def test_consumers_are_not_remembered_for_ever() -> None:
    """Each with tags of its own, they would fill the memory."""
    routes = Routes()
    routes.number(1)
    for n in range(2 * module.REMEMBERED_CONSUMERS):
        assert routes.served((1,), (f"host-{n}",)) == (0,)
    assert len(routes._served) <= module.REMEMBERED_CONSUMERS
