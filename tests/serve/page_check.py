"""Uses the page as a person would, in a real browser, and says what is wrong.

    page_check.py URL OUT PICTURE [DICOM]

URL: of a running server (tests/serve/stand_in_server.cc, or `thinkvg serve`). Leaves screenshots at two widths, light
and dark, in OUT, to be looked at. Needs Playwright's Python package and Chromium (CHROMIUM names another program than
the usual one). Fails when the page talks to anyone but the server, when the browser reports an error, or when
reasoning, regions or errors do not appear.
"""

import os
import pathlib
import shutil
import sys

from playwright.sync_api import expect, sync_playwright


def check(page, url, out, name, files):
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((url, "blob:", "data:")) else problems.append("asks " + r.url))
    page.goto(url)
    expect(page.locator("#model")).not_to_be_empty()
    page.screenshot(path=out / f"{name}-empty.png")
    page.set_input_files("#file", files[-1])
    expect(page.locator("#frame")).to_be_visible(timeout=30000)
    page.fill("#question", "What does this radiograph show?")
    page.keyboard.press("Enter")
    expect(page.locator(".s.has").first).to_be_visible(timeout=60000)
    expect(page.locator(".box").first).to_be_attached()
    page.screenshot(path=out / f"{name}-writing.png")
    expect(page.locator(".foot")).to_be_visible(timeout=300000)
    assert page.locator(".answer-text").inner_text().strip(), "no answer"
    sentence = page.locator(".s.has").first
    sentence.scroll_into_view_if_needed()
    sentence.hover()
    assert page.locator(".box.lit").count() >= 1, "hovering over a sentence lights nothing"
    page.wait_for_timeout(400)
    page.screenshot(path=out / f"{name}-hover.png")
    page.mouse.move(0, 0)
    assert page.locator(".box.lit").count() == 0, "a region stays lit"
    box = page.locator(".box").last.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.locator("[data-keys].lit").count() >= 1, "hovering over a region lights no text"
    # The boxes lie on the picture.
    picture = page.locator("#picture").bounding_box()
    for i in range(page.locator(".box").count()):
        b = page.locator(".box").nth(i).bounding_box()
        assert b["x"] >= picture["x"] - 4 and b["x"] + b["width"] <= picture["x"] + picture["width"] + 4, (b, picture)
    assert not problems, problems
    # What goes wrong is said in words.
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    expect(page.locator(".error").first).to_contain_text("notes.txt")
    page.click("#open-settings")
    page.fill("#max_tokens", "none")
    page.keyboard.press("Tab")
    page.screenshot(path=out / f"{name}-settings.png")
    page.keyboard.press("Escape")
    expect(page.locator("#drawer")).to_be_hidden()
    page.fill("#question", "Again?")
    page.keyboard.press("Enter")
    expect(page.locator(".error").last).to_contain_text("must be a number")
    return [p for p in problems if "400" not in p]


def main():
    url, out, files = sys.argv[1].rstrip("/"), pathlib.Path(sys.argv[2]), sys.argv[3:]
    out.mkdir(parents=True, exist_ok=True)
    browser_path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    problems = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for width, height in [(1440, 900), (420, 860)]:
            for scheme in ["light", "dark"]:
                context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
                use = files if width > 1000 and scheme == "light" else files[:1]
                problems += check(context.new_page(), url, out, f"{width}-{scheme}", use)
                context.close()
        browser.close()
    if problems:
        sys.exit("\n".join(problems))
    print("ok")


if __name__ == "__main__":
    main()
