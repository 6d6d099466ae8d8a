from ds_distill.cli import main

if __name__ == "__main__":  # workers started anew import this file too
    raise SystemExit(main())
