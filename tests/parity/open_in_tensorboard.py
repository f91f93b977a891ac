"""Opens the TensorBoard event files of a folder with the tensorboard package and compares the scalar "loss".

Usage: python tests/parity/open_in_tensorboard.py FOLDER STEP=VALUE,STEP=VALUE,...
"""

import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def main():
    events = EventAccumulator(sys.argv[1])
    events.Reload()
    found = {event.step: event.value for event in events.Scalars("loss")}
    expected = {int(step): float(value) for step, value in (pair.split("=") for pair in sys.argv[2].split(","))}
    print(found)
    if found.keys() != expected.keys() or any(abs(found[step] - expected[step]) > 1e-6 for step in expected):
        sys.exit(f"expected {expected}")
    if set(events.Tags()["scalars"]) != {"loss", "lr"}:
        sys.exit(f"tags {events.Tags()['scalars']}")


if __name__ == "__main__":
    main()
