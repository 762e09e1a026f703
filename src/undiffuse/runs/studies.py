"""The format of the files that studies leave in a run folder."""

FORMAT = 5
