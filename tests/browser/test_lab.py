"""The panels in JupyterLab, as a user opens them: dask-labextension lists and docks them.

JupyterLab is started for the test and driven in headless Chromium; the cluster is one of real
processes with a run on it. The pictures go into the documentation.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from distributed import Client, Event, Nanny, Scheduler, SpecCluster
from PIL import Image

from handoff_dask import DAG, Function, RetryPolicy, current, submit
from handoff_dask.widgets.markup import STATE_COLOURS

BLUE, GREEN, AMBER, RED = (STATE_COLOURS[s] for s in ("running", "done", "held", "failed"))
pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

PICTURES = Path(__file__).parents[2] / "docs" / "images"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
WORKERS = {
    "laptop": {"cpu": 2, "memory": 4000},
    "node-1": {"cpu": 4, "memory": 16000},
    "gpu-node": {"cpu": 4, "memory": 8000, "gpu": 1},
}
PANELS = {
    "Handoff Allocations": "individual-handoff-allocations",
    "Handoff Resources": "individual-handoff-resources",
    "Handoff Runs": "individual-handoff-runs",
}


def step(i, *_):
    """Work for a while; every seventh fails at first."""
    time.sleep(0.4 + i * 37 % 11 / 5)
    if i % 7 == 3 and current().attempt == 1:
        raise ConnectionError("not yet")
    return i


def hold(*_):
    """Keep the GPU until the test is over."""
    Event("go").wait()


def pipeline(name, images):
    """Return a DAG like those that users run."""
    dag = DAG(name)
    for i in range(images):
        retry = RetryPolicy(2, delay=1.0)

        def add(kind, args, cost, number, i=i, retry=retry):
            function = Function(
                id=f"{kind}-{i}",
                args=[f"{arg}-{i}" for arg in args],
                code=step,
                extra_args=() if args else (number,),
                cost=cost,
                retry=retry,
            )
            dag.add_function(function)

        add("load", [], {"cpu": 1, "memory": 500}, i)
        add("blur", ["load"], {"cpu": 1, "memory": 2000}, i)
        add("sharpen", ["load"], {"cpu": 2, "memory": 1500}, i)
        add("edges", ["load"], {"cpu": 1, "gpu": 1}, i)
        add("collage", ["blur", "sharpen", "edges"], {"cpu": 1, "memory": 3000}, i)
    return dag


@pytest.fixture(scope="module")
def cluster():
    """Three worker processes, on which runs go on."""
    workers = {
        name: {
            "cls": Nanny,
            "options": {"nthreads": 4, "resources": resources, "memory_limit": 0},
        }
        for name, resources in WORKERS.items()
    }
    options = {"host": "127.0.0.1", "dashboard": True, "dashboard_address": "127.0.0.1:0"}
    scheduler = {"cls": Scheduler, "options": options}
    with SpecCluster(workers=workers, scheduler=scheduler) as cluster, Client(cluster) as client:
        client.wait_for_workers(len(WORKERS), timeout=60)
        dag = DAG("keeps the GPU")
        dag.add_function(Function(id="train", args=[], code=hold, cost={"gpu": 1}))
        runs = [submit(dag)]
        runs += [submit(pipeline(name, 40)) for name in ("holiday", "archive")]
        yield cluster
        Event("go").set()
        for run in runs:
            run.cancel()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Start JupyterLab with nobody's settings; return its address."""
    place = tmp_path_factory.mktemp("lab")
    env = dict(os.environ)
    for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
        env[f"JUPYTER_{name}"] = str(place / name.lower())
    for name in ("SETTINGS_DIR", "WORKSPACES_DIR"):
        env[f"JUPYTERLAB_{name}"] = str(place / name.lower())
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port=0"]
    command += ["--allow-root", "--IdentityProvider.token=", f"--ServerApp.root_dir={place}"]
    settings = place / "settings_dir" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    # Without the question whether one wants to read the news.
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    log = place / "lab.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        ready = place / "runtime_dir" / f"jpserver-{server.pid}.json"
        while not (ready.exists() and ready.read_text().endswith("}")):
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
        yield json.loads(ready.read_text())["url"]
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def page(lab):
    """Open JupyterLab in a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(60_000)
        page.goto(f"{lab}lab")
        page.wait_for_selector("#jp-main-dock-panel")
        # A pointer as fast as this one outruns what keeps frames from swallowing its moves.
        page.add_style_tag(content="iframe { pointer-events: none }")
        yield page
        browser.close()


@pytest.fixture(scope="module")
def listing(page, cluster):
    """Connect the extension to the scheduler; return its list of panels."""
    page.click('[data-id="dask-dashboard-launcher"]')
    address = page.get_by_placeholder("DASK DASHBOARD URL")
    address.fill(f"http://127.0.0.1:{cluster.scheduler.http_server.port}")
    address.press("Enter")
    listing = page.locator(".dask-DashboardListing-list")
    listing.get_by_text("Handoff Runs", exact=True).wait_for()
    return listing


class Panel:
    """A panel that was opened from the list, in front of the others."""

    def __init__(self, page, listing, title):
        listing.get_by_text(title, exact=True).click()
        # The extension keeps the panel in front alive, and no other.
        self.element = page.locator(f'iframe[src*="{PANELS[title]}"]')
        self.element.wait_for(state="visible")
        self.frame = self.element.element_handle().content_frame()
        self.wait("true")

    def wait(self, condition):
        """Wait until something is true of `source(name)`, the columns of a source."""
        self.frame.wait_for_function(
            f"""() => {{
                const drawn = window.Bokeh && Bokeh.documents[0];
                const source = (name) => drawn.get_model_by_name(name).data;
                return drawn && {condition};
            }}"""
        )

    def column(self, source, name):
        """Return a column of what is drawn, as the browser has it."""
        return self.frame.evaluate(
            "([source, name]) => "
            "Array.from(Bokeh.documents[0].get_model_by_name(source).data[name])",
            [source, name],
        )


def picture(element, name):
    """Take a picture for the documentation; return how many of its pixels have which colour."""
    path = PICTURES / f"{name}.png"
    PICTURES.mkdir(exist_ok=True)
    element.screenshot(path=path)
    with Image.open(path) as opened:
        rgb = opened.convert("RGB")
    rgb.save(path, optimize=True)
    colors = rgb.getcolors(rgb.width * rgb.height)
    return {"#{:02x}{:02x}{:02x}".format(*color): count for count, color in colors}


def test_listed(listing):
    """The extension lists our panels by names that read well."""
    names = listing.inner_text().split("\n")
    assert [name for name in names if "HANDOFF" in name] == [title.upper() for title in PANELS]


def test_allocations(page, listing):
    """What runs is drawn on the row of its worker, and what ended in the colour of its outcome."""
    panel = Panel(page, listing, "Handoff Allocations")
    training = "train of keeps the GPU, attempt 1: running"
    panel.wait(f"source('placed').what.includes('{training}')")
    y = panel.column("placed", "y")[panel.column("placed", "what").index(training)]
    names = panel.frame.evaluate(
        "Object.fromEntries(Bokeh.documents[0].get_model_by_name('workers').major_label_overrides)"
    )
    assert names[str(int(y) + 0.5)] == "gpu-node"
    panel.wait("source('ended').what.length >= 60")
    panel.wait("source('ended').what.some((what) => what.includes('attempt 2: ok'))")
    colors = picture(panel.element, "dashboard-allocations")
    for color in (BLUE, GREEN, RED):
        assert colors.get(color, 0) > 100
    # Live: more ends while we look.
    ended = len(panel.column("ended", "what"))
    panel.wait(f"source('ended').what.length > {ended}")


def test_resources(page, listing):
    """The GPU is claimed and asked for, on its worker and in sum."""
    panel = Panel(page, listing, "Handoff Resources")
    panel.wait("source('cells').what.includes('gpu of gpu-node')")
    what = panel.column("cells", "what")
    for cell in ("gpu of gpu-node", "gpu of all workers"):
        place = what.index(cell)
        assert panel.column("cells", "declared")[place] == 1
        assert panel.column("cells", "claimed")[place] == 1
    panel.wait(f"source('cells').asked[{what.index('gpu of all workers')}] > 0")
    colors = picture(panel.element, "dashboard-resources")
    for color in (BLUE, AMBER):
        assert colors.get(color, 0) > 1000


def test_runs(page, listing):
    """Each run has its bar, and what is held is listed with the reason."""
    panel = Panel(page, listing, "Handoff Runs")
    panel.wait("source('runs').dag_id.length == 3")
    assert panel.column("runs", "dag_id") == ["keeps the GPU", "holiday", "archive"]
    assert panel.column("runs", "n_running")[0] == 1
    panel.wait("source('runs').n_done[1] > 0")
    panel.frame.get_by_text("gpu 1, at most 0 free on gpu-node").first.wait_for()
    colors = picture(panel.element, "dashboard-runs")
    for color in (BLUE, GREEN, AMBER):
        assert colors.get(color, 0) > 1000


def test_docked(page, listing):
    """The panels dock next to each other, as Dask's own do, and all of them are live."""
    dock = page.locator("#jp-main-dock-panel").bounding_box()
    places = {"Handoff Runs": (0.5, 0.97), "Handoff Resources": (0.97, 0.25)}
    for title in PANELS:
        Panel(page, listing, title)
    for title, (x, y) in places.items():
        bars = page.locator(".lm-DockPanel-tabBar").count()
        tab = page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab", has_text=title).bounding_box()
        page.mouse.move(tab["x"] + 60, tab["y"] + 12)
        page.mouse.down()
        page.mouse.move(dock["x"] + 0.5 * dock["width"], dock["y"] + 0.4 * dock["height"], steps=9)
        page.mouse.move(dock["x"] + x * dock["width"], dock["y"] + y * dock["height"], steps=9)
        page.mouse.up()
        page.wait_for_function(
            "bars => document.querySelectorAll('.lm-DockPanel-tabBar').length > bars", arg=bars
        )
    front = [Panel(page, listing, title) for title in PANELS]
    for panel, source in zip(front, ("ended", "cells", "runs"), strict=True):
        panel.wait(f"Object.values(source('{source}'))[0].length > 0")
    colors = picture(page, "jupyterlab")
    for color in (BLUE, GREEN, RED, AMBER):
        assert colors.get(color, 0) > 100
