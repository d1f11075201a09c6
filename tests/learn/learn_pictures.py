"""The pictures of docs/learn: every chapter, and one exercise from its stub to a right answer.

PYTHONPATH=tests:tests/learn python -m learn_pictures
"""

import base64
import tempfile
from pathlib import Path

from headway.learn import grading, page, server
from headway.learn.exercise import exercises
from headway.learn.guide import chapters, coloured
from pages import CHROMIUM, started

FOLDER = Path("docs/learn")
TALLEST = 1500  # pixels of a chapter
NAME = "softmax"
WRONG = """\
import numpy as np

def softmax(scores):
    e = np.exp(scores)
    return e / e.sum(axis=0)
"""
RIGHT = """\
import numpy as np

def softmax(scores):
    top = scores.max(-1, keepdims=True)
    e = np.exp(scores - top)
    return e / e.sum(-1, keepdims=True)
"""


def opened(context, address):
    """A new page on which all figures of the chapter are drawn."""
    shown = context.new_page()
    shown.goto(address)
    shown.wait_for_function(
        "() => !document.querySelector('article:not([hidden]) .live:not([data-drawn])')"
    )
    return shown


def beginning(shown):
    """The part of the page up to the end of the first figure."""
    figure = shown.locator("article:visible .live").first.bounding_box()
    width = shown.viewport_size["width"]
    height = min(figure["y"] + figure["height"] + 30, TALLEST) if figure else 860
    return {"x": 0, "y": 0, "width": width, "height": height}


def take_chapters(browser, address):
    """Every chapter; one of them also on a phone, dark, and as a slide."""
    wide = browser.new_context(viewport={"width": 1280, "height": 860}, reduced_motion="reduce")
    for chapter in chapters():
        shown = opened(wide, f"{address}#{chapter.name}")
        shown.screenshot(path=FOLDER / f"{chapter.name}.png", clip=beginning(shown), full_page=True)
        shown.close()
    phone = browser.new_context(
        viewport={"width": 390, "height": 844}, color_scheme="dark", device_scale_factor=2
    )
    opened(phone, f"{address}#mask").screenshot(path=FOLDER / "phone.png")
    slide = opened(wide, f"{address}#scale")
    slide.set_viewport_size({"width": 1280, "height": 720})
    slide.keyboard.press("p")
    while not slide.locator(".live:visible").count():
        slide.keyboard.press("ArrowRight")
    slide.wait_for_timeout(1000)
    slide.screenshot(path=FOLDER / "present.png")


SEQUENCE = """<!doctype html><body style="display: flex; gap: 14px; margin: 0; padding: 2px">
STEPS</body>"""
STEP = '<img style="width: 400px; align-self: start" src="data:image/png;base64,{}">'
# Instead of the task and the stub, the learner's file.
ANSWER = """(box, code) => {
    for (const one of box.querySelectorAll(":scope > p")) one.remove()
    box.querySelector(".stub").open = true
    box.querySelector(".stub .code").outerHTML = code
}"""


def take_exercise(browser, folder):
    """One picture of an exercise: its task with the stub, a wrong answer, and the right one."""
    exercise = exercises()[NAME]
    answers = {"stub": exercise.stub, "wrong": WRONG, "right": RIGHT}
    state = {"number": exercise.number, "name": NAME, "title": exercise.title}
    state["right"] = exercise.right
    progress = {"exercises": [state], "current": NAME}
    running, thread, address = started(lambda port: server.app(lambda: progress, port))
    context = browser.new_context(viewport={"width": 436, "height": 1600}, device_scale_factor=1.5)
    steps = []
    for name, code in answers.items():
        file = folder / exercise.file
        file.write_text(code, encoding="utf-8")
        grade = grading.grade(file, exercise)
        assert grade.passed == (name == "right")
        state |= {"file": f"learn/{exercise.file}", "grade": grade.as_json()}
        state |= {"state": "passed" if grade.passed else "open"}
        shown = opened(context, f"{address}#{NAME}")
        box = shown.locator(f"[data-exercise={NAME}]")
        box.get_by_text(
            "Your turn" if name == "stub" else "do not sum to 1" if name == "wrong" else "Passed"
        ).wait_for()
        if name != "stub":
            box.evaluate(ANSWER, coloured(code))
        steps.append(STEP.format(base64.b64encode(box.screenshot()).decode()))
        shown.close()
    running.should_exit = True
    thread.join()
    context = browser.new_context(viewport={"width": 1232, "height": 860}, device_scale_factor=1.5)
    shown = context.new_page()
    shown.set_content(SEQUENCE.replace("STEPS", "".join(steps)))
    shown.locator("body").screenshot(path=FOLDER / "exercise.png")


def main():
    from playwright.sync_api import sync_playwright

    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        file = Path(temporary) / "guide.html"
        file.write_text(page.file(), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        take_chapters(browser, file.as_uri())
        take_exercise(browser, Path(temporary))
        browser.close()


if __name__ == "__main__":
    main()
