"""`python -m scalecap.scenes.train DIR`: trains the embedded model from scratch."""

from scalecap.scenes.train.training import main

if __name__ == "__main__":
    main()
