"""`python -m scalecap.scenes.train DIR`: trains the tiny model from nothing."""

from scalecap.scenes.train.training import main

if __name__ == "__main__":
    main()
