"""The format of the files RUN/study/NAME.json. Studies write them, and reports read them."""

FORMAT = 4
