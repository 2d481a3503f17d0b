"""`python -m scalecap.compare`, which is `scalecap compare`. In Python, `scalecap.compare` is a function."""

from scalecap.report.comparison import main

if __name__ == "__main__":
    main()
