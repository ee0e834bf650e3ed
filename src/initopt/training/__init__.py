"""One step of training, for everything here that trains: comparisons, remedies, choices and range tests."""
