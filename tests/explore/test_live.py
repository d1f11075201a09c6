"""The served page in a real browser: another text, a changed model, a file to keep."""

import numpy as np
import pytest
import torch
from playwright.sync_api import expect

import headway
from headway.explore.edits import Edit
from headway.explore.trace_file import token_records
from headway.explore.tracers import LadderTracer, ModelTracer, TraceRequest, WithLadder
from headway.hf.stored import StoredModel
from headway.torch.generate import generate
from headway.torch.weights import load
from pages import opened, served, settled, table

pytestmark = pytest.mark.xdist_group("browser")
TEXT = "it was the age"


@pytest.fixture(scope="module")
def address(run, tmp_path_factory):
    tracer = WithLadder(ModelTracer(StoredModel.open(run.path)))
    folder = tmp_path_factory.mktemp("traces")
    running, thread, at = served(tracer, TraceRequest(TEXT, write=24), folder)
    yield at
    running.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def model(run):
    return load(run).eval()


def tokens(text):
    return torch.tensor([list(text.encode())])


def bars(page):
    """The probabilities of the next token that the page shows, by its drawn name."""
    return dict(
        page.locator(".next .bar").evaluate_all(
            """all => all.map(bar => [bar.querySelector('.token').textContent,
                Number(bar.querySelector('.number').dataset.value)])"""
        )
    )


def after(model, text, changes=None):
    """The engine's probabilities of the next byte."""
    with torch.no_grad(), headway.edit(changes or {}):
        return model(tokens(text))[0, -1].double().softmax(-1)


def test_another_text(page, address, model):
    opened(page, address)
    page.fill("#text", "of wisdom, it")
    page.keyboard.press("Enter")
    expect(page.locator(".tokens .token")).to_have_count(13)
    settled(page)
    shares = after(model, "of wisdom, it")
    shown = bars(page)
    assert len(shown) >= 10
    for name, share in shown.items():
        if len(name) == 1 and name.isascii():
            assert share == pytest.approx(shares[ord(name)].item(), rel=1e-5)
    page.go_back()
    expect(page.locator(".tokens .token")).to_have_count(len(TEXT))
    assert page.input_value("#text") == TEXT


def test_a_text_that_does_not_fit_is_refused_in_a_line(page, address):
    opened(page, address)
    page.fill("#text", "x" * 100)
    page.keyboard.press("Enter")
    expect(page.locator(".error")).to_contain_text("must have 1 to 80 tokens (it has 100)")
    assert page.input_value("#text") == "x" * 100  # nothing is lost
    assert page.evaluate("location.hash") == ""  # nor is the address that of a failure
    page.goto("about:blank")
    opened(page, f"{address}#text={'y' * 90}")
    expect(page.locator(".error")).to_contain_text("to 80 tokens (it has 90)")
    assert page.locator(".band").count() == 2


LAYER = "blocks.0.attention"


def test_without_the_mask_the_future_is_seen(page, address, model):
    opened(page, f"{address}#layer=0&head=1&step=weights&table=1")
    before = table(page)
    assert np.allclose(before, np.tril(before))
    page.get_by_role("checkbox", name="mask").uncheck()
    expect(page.locator(".edits li")).to_have_count(1)
    settled(page)
    now = table(page)
    with torch.no_grad(), headway.trace(only=f"{LAYER}.scaled") as steps:
        model(tokens(TEXT))
    wanted = steps[f"{LAYER}.scaled"][0, 1].softmax(-1).numpy()
    np.testing.assert_allclose(now, wanted, atol=1e-6)
    assert np.triu(now, 1).any()
    with torch.no_grad(), headway.trace(only=f"{LAYER}.weights") as steps:
        model(tokens(TEXT))
    opened(page, f"{address}#layer=0&head=2&step=weights&table=1&edit=no mask|{LAYER}|1")
    np.testing.assert_allclose(table(page), steps[f"{LAYER}.weights"][0, 2], atol=1e-6)


def test_without_the_scale(page, address, model):
    opened(page, f"{address}#layer=0&head=1&step=scaled&table=1")
    page.get_by_role("checkbox", name="scale").uncheck()
    settled(page)
    expect(page.locator(".changed")).to_contain_text("not scaled")
    with torch.no_grad(), headway.trace(only=f"{LAYER}.scores") as steps:
        model(tokens(TEXT))
    np.testing.assert_allclose(table(page), steps[f"{LAYER}.scores"][0, 1], atol=1e-5)


def first_head(change):
    return lambda value: torch.cat([change(value[:, :1]), value[:, 1:]], dim=1)


def uniform(weights):
    share = torch.tril(torch.ones_like(weights))
    return share / share.sum(-1, keepdim=True)


def previous(weights):
    share = torch.zeros_like(weights)
    for query in range(weights.shape[-2]):
        share[..., query, max(query - 1, 0)] = 1
    return share


@pytest.mark.parametrize(
    ("what", "step", "change"),
    [
        ("off", "context", lambda context: context * 0),
        ("uniform", "weights", uniform),
        ("identity", "weights", lambda weights: torch.eye(weights.shape[-1]).expand_as(weights)),
        ("previous", "weights", previous),
    ],
)
def test_what_a_change_does_downstream(page, address, model, what, step, change):
    opened(page, f"{address}#layer=0&head=0&step={step}&table=1")
    if what == "off":
        page.get_by_role("checkbox", name="this head").uncheck()
    else:
        page.get_by_label("weights", exact=False).last.select_option(what)
    expect(page.locator(".edits li")).to_have_count(1)
    settled(page)
    changes = {f"{LAYER}.{step}": first_head(change)}
    with torch.no_grad(), headway.edit(changes), headway.trace(only=f"*.{step}") as steps:
        model(tokens(TEXT))
    np.testing.assert_allclose(table(page), steps[f"{LAYER}.{step}"][0, 0], atol=1e-6)
    page.locator(".crumbs a").first.click()
    page.wait_for_selector(".model")
    settled(page)
    shares, plain = after(model, TEXT, changes), after(model, TEXT)
    assert not torch.allclose(shares, plain)
    for name, share in bars(page).items():
        if len(name) == 1 and name.isascii():
            assert share == pytest.approx(shares[ord(name)].item(), rel=1e-4)
    ghosts = page.locator(".next .bar").evaluate_all(
        """all => all.map(bar => [bar.querySelector('.token').textContent,
            parseFloat(bar.querySelector('.ghost').style.left)])"""
    )
    assert len(ghosts) >= 10
    for name, left in ghosts:  # where the bars were before
        if len(name) == 1 and name.isascii():
            assert left / 100 == pytest.approx(plain[ord(name)].item(), rel=1e-3)
    moved = page.locator(".band .moved").all_inner_texts()
    assert len(moved) == 2
    streams = []
    for edited in ({}, changes):
        with torch.no_grad(), headway.edit(edited), headway.trace(only="*.after_mlp") as steps:
            model(tokens(TEXT))
        streams.append([steps[f"blocks.{layer}.after_mlp"][0, -1] for layer in (0, 1)])
    for shown, old, new in zip(moved, *streams, strict=True):
        share = ((new - old).norm() / old.norm()).item()
        assert float(shown.strip("Δ %")) / 100 == pytest.approx(share, rel=0.06)
    page.get_by_role("button", name="undo").click()
    expect(page.locator(".edits")).to_have_count(0)
    settled(page)
    assert page.locator(".ghost").count() == 0


def test_temperature_and_writing_again(page, address, model):
    opened(page, address)
    first = page.inner_text(".written")
    page.get_by_label("temperature").fill("0.5")
    page.get_by_label("temperature").press("Enter")
    settled(page)
    shares = (after(model, TEXT).log() / 0.5).softmax(-1)
    for name, share in bars(page).items():
        if len(name) == 1 and name.isascii():
            assert share == pytest.approx(shares[ord(name)].item(), rel=1e-4)
    assert "temperature 0.5" in page.inner_text(".written")
    page.get_by_role("button", name="generate again").click()
    expect(page.locator(".written")).to_contain_text("seed 1")
    assert page.inner_text(".written") != first


def test_a_state_is_kept_as_one_file(page, browser, address, tmp_path):
    opened(page, f"{address}#layer=0&head=0&step=weights&table=1&edit=uniform|{LAYER}|0")
    numbers = table(page)
    assert numbers[3, 0] == pytest.approx(0.25)
    with page.expect_download() as download:
        page.get_by_role("button", name="save as HTML").click()
    download.value.save_as(tmp_path / "kept.html")
    context = browser.new_context(offline=True)
    alone = context.new_page()
    asked = []
    alone.on("request", lambda request: asked.append(request.url))
    opened(alone, (tmp_path / "kept.html").as_uri())
    assert np.array_equal(table(alone), numbers)
    assert "uniform weights" in alone.inner_text("aside")
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "blob"}
    context.close()


def test_several_changes_at_once(page, address, model):
    """Without scale and mask: the softmax sees the scores as they are, of all keys."""
    edits = f"edit=no mask|{LAYER}|&edit=no scale|{LAYER}|"
    opened(page, f"{address}#layer=0&head=3&step=weights&table=1&{edits}")
    with torch.no_grad(), headway.trace(only=f"{LAYER}.scores") as steps:
        model(tokens(TEXT))
    wanted = steps[f"{LAYER}.scores"][0, 3].softmax(-1)
    np.testing.assert_allclose(table(page), wanted, atol=1e-6)
    opened(page, f"{address}#layer=0&head=3&step=weights&cell=2,5&{edits}")
    assert "not scaled, by your edit" in page.inner_text("main")
    opened(page, f"{address}#layer=0&head=3&cell=2,1&edit=uniform|{LAYER}|3")
    assert "= replaced by your edit: 0.333" in page.inner_text("main")


def test_a_thumbnail_shows_the_leak(page, address):
    opened(page, f"{address}#edit=no mask|{LAYER}|0")
    corners = page.locator(".band canvas").evaluate_all(
        """all => all.map(one => one.getContext('2d')
            .getImageData(one.width - 2, 1, 1, 1).data[3])"""
    )
    assert corners[0] == 255  # a weight; the others are hatched
    assert max(corners[1:]) < 255


def test_the_pages_own_functions(page, address):
    opened(page, address)
    state = {
        "edits": [
            {"what": "off", "attention": "a.b", "head": 1},
            {"what": "no mask", "attention": "c", "head": None},
        ]
    }
    state |= {"text": "a b", "temperature": 0, "top_k": 3, "seed": 2, "ladder": True, "diff": True}
    state |= {"rung": "causal", "layer": 1, "head": 2, "step": "weights", "cell": [3, 1]}
    state |= {"tensor": "x.y", "part": 1, "at": [4, 5], "query": 6, "training": 9}
    state |= {"lines": True, "table": True, "without": True, "view": "heads", "sort": "first"}
    state |= {"deleted": "q:h0.2", "present": True, "frame": 3}
    back, known = page.evaluate(
        """async state => {
            const {START, read, write} = await import('/static/state.js');
            return [read(write({...START, ...state})), Object.keys(START)];
        }""",
        state,
    )
    assert set(state) == set(known)
    assert back == state
    message = page.evaluate(
        """async () => {
            const {short, exact, percent, fitting} = await import('/static/numbers.js');
            return [short(-0.00012345), short(12345.6), short(-Infinity), exact(Math.fround(0.1)),
                exact(0.1), percent(0.1234), percent(0.0001), fitting(0.000942, 33),
                fitting(-0.653, 33), fitting(-12.34, 33)];
        }"""
    )
    numbers = [
        "−0.000123",
        "12300",
        "−∞",
        "0.1",
        "0.1",
        "12.3 %",
        "<0.1 %",
        "9e-4",
        "−0.65",
        "−12.3",
    ]
    assert message == numbers


def test_no_text_becomes_a_script_on_the_server_either(page, address):
    page.add_init_script("window.times = 0; window.alert = window.fired = () => { window.times++ }")
    for nasty in ("</script><img src=x onerror=fired()>", "\u202e'\"><svg onload=fired()>\u2028"):
        opened(page, address)
        page.fill("#text", nasty)
        page.keyboard.press("Enter")
        expect(page.locator(".tokens .token")).to_have_count(len(nasty.encode()))
        settled(page)
        assert page.input_value("#text") == nasty
        at = page.url
        for state in (
            "layer=0&head=0&step=weights&table=1",
            "layer=0&head=0&cell=2,1",
            "layer=0&head=0&step=weights&present=1&frame=2",
        ):
            opened(page, f"{at}&{state}")
            assert page.locator("main img, svg svg").count() == 0
    opened(page, f"{address}#edit=<img src=x onerror=fired()>|<b>|0")
    expect(page.locator(".error")).to_contain_text("an edit must be one of")
    assert page.evaluate("window.times") == 0


def test_top_k_reaches_the_sampler(page, address):
    opened(page, f"{address}#top_k=1&temperature=1.5")
    assert "temperature 1.5, top 1" in page.inner_text(".written")
    assert page.locator(".next .bar").count() == 1
    one = page.locator(".written p").first.inner_text()
    page.get_by_role("button", name="generate again").click()
    expect(page.locator(".written")).to_contain_text("seed 1")
    assert page.locator(".written p").first.inner_text() == one  # the likeliest, whatever the seed


def test_a_question_is_asked_again_where_its_answer_was_lost(page, address):
    opened(page, address)
    asked = []
    page.on(
        "request",
        lambda request: (
            asked.append(request.method + request.post_data_json["text"])
            if request.url.endswith("/trace")
            else None
        ),
    )
    # The first answer is aborted by the next question; coming back asks anew.
    page.route("**/trace", lambda route: (page.wait_for_timeout(150), route.continue_()))
    page.evaluate("""() => { location.hash = 'text=first';
        setTimeout(() => { location.hash = 'text=other'; }, 30); }""")
    expect(page.locator(".tokens")).to_have_text("other")
    page.unroute("**/trace")
    opened(page, f"{address}#text=first")
    expect(page.locator(".tokens")).to_have_text("first")
    assert asked == ["POSTfirst", "POSTother", "POSTfirst"]
    # A range that could not be read is read again, and a trace forgotten there is asked for again.
    for layer, fail in enumerate(
        (lambda route: route.abort(), lambda route: route.fulfill(status=404, body=""))
    ):
        page.route("**/trace/*", fail)
        page.evaluate(f"location.hash = 'text=first&layer={layer}'")
        expect(page.locator(".error")).to_be_visible()
        page.unroute("**/trace/*")
        opened(page, f"{address}#text=first&layer={layer}")
        expect(page.locator(".flow")).to_have_count(2)
        assert len(asked) >= 3 + layer
        opened(page, f"{address}#text=first")


def test_what_is_written_stands_in_order(page, address, run):
    opened(page, f"{address}#temperature=0.01&seed=5")
    start = [np.array(list(TEXT.encode()))]
    draws = {"tokens": 24, "temperature": 0.01, "seed": 5}
    written = bytes(token for (token,) in generate(load(run), start, **draws))
    warm = bytes(token for (token,) in generate(load(run), start, **draws | {"temperature": 1.0}))
    assert written != warm
    shown = page.locator(".written .token:not(.dim)").all_inner_texts()
    assert shown == [each["display"] for each in token_records(written, run.tokenizer)]


@pytest.mark.parametrize(("name", "begins"), [("SVG", b"<svg"), ("PNG", b"\x89PNG")])
def test_a_picture_is_kept(page, address, tmp_path, name, begins):
    opened(page, f"{address}#layer=0&head=0&step=weights")
    with page.expect_download() as download:
        page.get_by_role("button", name=name).click()
    download.value.save_as(tmp_path / "kept")
    content = (tmp_path / "kept").read_bytes()
    assert content.startswith(begins)
    assert b"var(--" not in content


def test_the_ladder_on_other_words(page, tmp_path):
    running, thread, at = served(LadderTracer(), TraceRequest("one two three"), tmp_path)
    opened(page, at)
    assert page.locator(".tokens .token").all_inner_texts() == ["one", "two", "three"]
    page.fill("#text", "The dog who saw the cat")
    page.keyboard.press("Enter")
    expect(page.locator(".tokens .token")).to_have_count(6)
    page.get_by_role("link", name="2 simplified").click()
    page.get_by_role("button", name="what changed").click()
    expect(page.locator(".rung figure", has_text="no change")).to_have_count(1)  # x
    running.should_exit = True
    thread.join()


def test_the_browser_itself_keeps_strangers_out(page, browser, address):
    """A page of another origin in the same browser can neither read nor ask."""
    page.goto("data:text/html,<p>elsewhere")
    for method in ("GET", "POST"):
        message = page.evaluate(
            """([url, method]) => fetch(url, {method, body: method === 'POST' ? '{}' : undefined})
                .then(answer => answer.text(), () => 'refused')""",
            [address + ("trace" if method == "POST" else ""), method],
        )
        assert message == "refused"
    opened(page, address)
    policy = page.request.get(address).headers["content-security-policy"]
    assert "unsafe" not in policy
    with pytest.raises(Exception, match="Content Security Policy"):
        page.add_script_tag(content="window.fired = 1")


def test_without_the_output_matrix_the_output_is_the_contexts(page, address, run):
    """Each head's part has its context in its place, and the product is not drawn."""
    edits = f"edit=no output|{LAYER}|"
    total = 0
    for head in range(4):
        opened(page, f"{address}#layer=0&head={head}&step=output&table=1&{edits}")
        total = total + table(page)
    assert page.locator(".product").count() == 0
    assert page.locator(".replaced .equation").count() == 1
    assert page.inner_text(".flow-arrow s") == "× W_O"
    changed = (Edit("no output", LAYER),)
    tensors, _ = ModelTracer(StoredModel.open(run.path)).trace(TraceRequest(TEXT, edits=changed))
    np.testing.assert_allclose(total, tensors[f"{LAYER}.output"][0], rtol=1e-6)
