"""`python -m headway`, which `torchrun -m headway` needs."""

from headway.cli.main import main

if __name__ == "__main__":
    main()
