from ds_distill.cli import main

raise SystemExit(main())
