"""What the scripts do, as functions of their settings: other programs call them, too."""
